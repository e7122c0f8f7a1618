"""The verb ``resnet-bench doctor``."""

import gc

import typer
from rich.text import Text

from resnet_bench.cli.options import DataFolder, Json, TrackingURI, data_folder, help_text, new_app
from resnet_bench.cli.screen import FAILED, console, echo, print_json

app = new_app()


@app.command(
    help=help_text(
        "Check what this machine offers: Python, torch, GPU, data, tracking store.",
        example="doctor",
        following="run resnet9-onecycle-adam --profile smoke",
    )
)
def doctor(data: DataFolder = None, tracking: TrackingURI = None, as_json: Json = False) -> None:
    folder = data_folder(data)

    # Torch is imported when the verb is called, so that help and completion are quick. Of what it makes nothing is
    # garbage, and looking for some takes time.
    gc.disable()
    try:
        from resnet_bench.cli.machine import check_machine
    finally:
        gc.enable()

    findings = check_machine(folder, tracking)
    works = all(finding.good for finding in findings if finding.required)
    if as_json:
        print_json("doctor", works=works, findings=findings)
    for finding in findings if not as_json else ():
        mark = ("✓", "green") if finding.good else ("✗", "yellow")
        console.print(Text.assemble(mark, f" {finding.subject:<16} {finding.text}"), soft_wrap=True)
        if finding.remedy:
            echo(f"    {finding.remedy}")
    if not works:
        raise typer.Exit(FAILED)
