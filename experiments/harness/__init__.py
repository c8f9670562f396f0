"""What experiments, tools and studies share; nothing here is run."""
