"""Reports of finished runs: `results.json`, Markdown, the paper's tables, and one HTML page."""
