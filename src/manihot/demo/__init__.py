"""The drawn demo photographs."""
