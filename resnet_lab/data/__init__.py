"""From CSV files to batches: table, reader, sampler."""
