"""Search of sizes and rates: trials of one model, judged on the hold-out."""
