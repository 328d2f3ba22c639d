"""Commands and their output as a page that looks like a terminal."""

from html import escape

PAGE = """<!DOCTYPE html>
<meta charset="utf-8">
<style>
  body {{ margin: 0; background: #fff; }}
  main {{ display: inline-block; background: #1d2430; border-radius: 10px; color: #d7dde6; }}
  header {{ display: flex; gap: 8px; padding: 13px 16px 0; }}
  header i {{ width: 12px; height: 12px; border-radius: 50%; }}
  pre {{ margin: 0; padding: 12px 18px 16px; font: 14px/1.42 "Liberation Mono", monospace;
    white-space: pre-wrap; overflow-wrap: anywhere; }}
  b {{ color: #fff; }} b::before {{ content: "$ "; color: #6fcf97; }}
</style>
<main>
  <header><i style="background:#ec6a5e"></i><i style="background:#f4bf4f"></i><i
  style="background:#61c554"></i></header>
  <pre style="width:{columns}ch">{lines}</pre>
</main>
"""
COLUMNS = 100


def render_terminal(session, columns=COLUMNS):
    """Render a session as HTML.

    Args:
        session: Pairs of a command line and its output.
        columns: The width in characters.

    Example:
        >>> "<b>ls</b>\\na &lt; b" in render_terminal([("ls", "a < b\\n")])
        True
    """
    parts = [f"<b>{escape(command)}</b>\n{escape(output)}" for command, output in session]
    # One more, as the widths of characters are rounded.
    return PAGE.format(columns=columns + 1, lines="\n".join(part.rstrip() + "\n" for part in parts))
