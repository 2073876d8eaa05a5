"""The page of a reproduction, made from its records; no framework is imported."""

from tf_lrtraj.report.study.study_page import PAGE, markdown_page, write_page, write_results

__all__ = ["PAGE", "markdown_page", "write_page", "write_results"]
