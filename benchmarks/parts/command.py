"""The parser of a benchmark's command line."""

from pyclassify.utils.options import CommandParser, UsageError


class BenchmarkParser(CommandParser):
    """Parse the command line of `python -m benchmarks.NAME`; a usage error exits with 2.

    Args:
        name: The module, without `benchmarks.`.
        description: Its docstring.
        examples: The options of examples, which end the help.
    """

    def __init__(self, name, description, examples=("",)):
        command = f"python -m benchmarks.{name}"
        lines = [f"{command} {options}".rstrip() for options in examples]
        super().__init__(command, description=description, examples=lines)

    def add_json_option(self):
        """Add the option --json, which most benchmarks have."""
        self.add_argument("--json", metavar="FILE", help="Write all figures to this JSON file.")

    def error(self, message):
        try:
            super().error(message)
        except UsageError as error:
            self.exit(2, f"{self.prog}: error: {error}\n")
