"""A little plain English about nothing in particular: text on which an intervention's damage shows as perplexity."""

SENTENCES = (
    "The river rose in the night, and by the morning the lower fields were under water.",
    "She put the letter in a drawer, closed it, and did not open it again until spring.",
    "Most birds that nest on the cliff return to the same ledge year after year.",
    "If the dough is too dry, add a spoonful of water and knead it for another minute.",
    "The committee met twice in June but could not agree on a date for the next election.",
    "He learned to mend clocks from his aunt, who had a small shop near the station.",
    "A good map leaves out almost everything, and what it keeps it shows to scale.",
    "When the engine is cold, the pump needs a few seconds before the pressure is steady.",
)
