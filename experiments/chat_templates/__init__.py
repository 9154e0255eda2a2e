"""Loss masks of published chat templates: derived by rendering, compared with markers and with readings by hand."""
