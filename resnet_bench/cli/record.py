"""The verbs of ``resnet-bench record``, each in its own module."""

from resnet_bench.cli import record_board, record_check, record_verify
from resnet_bench.cli.options import help_text, new_app

app = new_app("Check a speed record, or verify one of somebody else.")

app.command(
    "check",
    help=help_text(
        "Train a recipe once per seed, and report whether its claim holds, and in how many seconds.\n\nThe lower "
        "bound of the one-sided 95% CI of the mean has to reach the claim; see docs/records.md. What is found goes "
        "into a bundle, a folder that others can verify.",
        example="record check speedrun-90",
        following="record verify reports/records/speedrun-90",
    ),
)(record_check.check)

app.command(
    "verify",
    help=help_text(
        "Compute what a bundle states again from its files, then repeat it on this machine.\n\nExit code 0: it agrees. "
        "1: the repeat does not. 2: the bundle is damaged, or states what its files do not give.",
        example="record verify reports/records/speedrun-90 --seeds 3",
    ),
)(record_verify.verify)

app.command(
    "board",
    help=help_text(
        "Write the scoreboard of the bundles in a folder: a page that needs no server, and Markdown.",
        example="record board reports/records",
    ),
)(record_board.board)
