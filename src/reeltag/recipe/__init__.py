"""The typed recipe: schema, loading, overrides and the recipes that come with reeltag."""
