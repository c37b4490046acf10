"""Feature extractors. Each gives a list of feature maps, finest first, and their channel counts."""
