"""The page of a reproduction, made from its records; no framework is imported."""

from tf_lrtraj.report.reproduction.page import markdown_page, write_page

__all__ = ["markdown_page", "write_page"]
