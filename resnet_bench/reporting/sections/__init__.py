"""The sections of a report, one module each, with its templates beside it, in the order of ``report.SECTIONS``."""
