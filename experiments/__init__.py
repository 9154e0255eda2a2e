"""Programs that make the embedded model and the stored records; see README.md. Not installed."""
