"""The web: pages, JSON, feeds and a server for assistants, over the feed and the lab. It reads, and queues runs; it computes nothing."""
