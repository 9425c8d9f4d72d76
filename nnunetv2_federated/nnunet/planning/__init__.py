"""Before training: a site's raw images, one plan for all sites, what plans of others may name."""
