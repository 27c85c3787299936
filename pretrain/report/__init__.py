"""Runs as a person would look at them: pictures, figures side by side, and what one run saves against another."""

from pretrain.report.write import write_report

__all__ = ["write_report"]
