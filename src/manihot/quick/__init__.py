"""The method `features`: frozen features and a regularised linear head per fold."""
