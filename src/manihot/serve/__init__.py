"""The HTTP server of an exported model: photographs in, answers out, and the page for phones."""
