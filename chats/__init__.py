"""Conversations, messages, and the replies that models write."""
