"""The pages, by subject matter. Importing a module here registers its pages."""
