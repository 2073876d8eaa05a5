"""The page of a reproduction, from its records and its ledger; TensorFlow is never imported."""

from tf_lrtraj.report.reproduction.page import markdown_page, write_page

__all__ = ["markdown_page", "write_page"]
