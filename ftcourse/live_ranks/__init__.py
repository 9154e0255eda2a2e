"""Live ranks: processes that a notebook's `%%px` cells talk to."""
