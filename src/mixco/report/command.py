"""`mixco report`: a page, a table, or a collection of results."""

from pathlib import Path

from mixco.report.table import table
from mixco.runtime.errors import UserError
from mixco.runtime.run_folder import collect
from mixco.runtime.streams import answer
from mixco.settings.commands import ReportConfig
from mixco.settings.parse import check_ranges


def report(config: ReportConfig) -> Path | None:
    """Make the page and return it; or print the table, or add to a collection, and return None."""
    check_ranges(config)
    if not config.runs:
        raise UserError("report: give run folders, or results.json files that hold several runs")
    if config.name is not None and (config.collect is None or len(config.runs) != 1):
        raise UserError("--name is what --collect calls a single run; leave it out")
    page = not config.table and config.collect is None
    if not page and (config.out or config.images):
        raise UserError("--out and --images belong to the page; leave out --table and --collect")
    if config.collect is not None:
        for run in config.runs:
            collect(run, config.collect, config.name or run.resolve().name)
    if config.table:
        answer(table(config.runs))
    if not page:
        return None
    from mixco.report.page import write_page  # it takes time to load

    return write_page(config)
