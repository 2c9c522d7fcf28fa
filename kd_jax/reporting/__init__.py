"""What the report on runs is made of: runs by recipe, the sections about them, and the page that holds these."""
