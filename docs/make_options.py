"""Write the table of options in settings.md, from the settings' declarations.

python docs/make_options.py
"""

from pathlib import Path

from mixco.settings.config import PretrainConfig
from mixco.settings.options import table

PAGE = Path(__file__).with_name("settings.md")
BEGIN, END = "<!-- options: pretrain -->\n", "<!-- end of options -->"


def with_table(page: str) -> str:
    """The page with the table between its marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}{table(PretrainConfig)}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text("utf-8")), "utf-8")
