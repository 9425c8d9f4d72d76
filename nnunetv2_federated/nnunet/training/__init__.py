"""A trainer at work, a round at a time: at a site, and the global model's result folder."""
