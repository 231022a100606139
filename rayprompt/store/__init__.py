"""The score store: every measured pair, once and for ever, as immutable Parquet files."""
