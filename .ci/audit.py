"""Looks for unsafe code with bandit, and for known holes in the locked packages with pip-audit.

Where no advisory service can be reached this says so, in capitals: pip-audit itself would report that it has found no
known vulnerabilities and end with success.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
SERVICES = ("pypi", "osv")


def main() -> int:
    """Run both; gives the exit status."""
    print("bandit: resnet_bench")
    unsafe = subprocess.run(  # noqa: S603 - fixed arguments
        [tool("bandit"), "--quiet", "--recursive", "resnet_bench"],
        cwd=REPOSITORY,
        check=False,
    ).returncode
    if not unsafe:
        print("bandit: nothing found")
    lines, holes = verdict(first_answer([asked(service) for service in SERVICES]))
    print("\n".join(lines))
    return 1 if unsafe or holes else 0


def tool(name: str) -> str:
    """A program of the environment that this runs in."""
    return str(Path(sys.executable).with_name(name))


def asked(service: str) -> list[dict[str, Any]]:
    """What an advisory service says of each locked package; nothing where it cannot be asked."""
    command = [tool("pip-audit"), "--requirement", "requirements.lock", "--require-hashes", "--disable-pip"]
    done = subprocess.run(  # noqa: S603 - fixed arguments
        [*command, "--vulnerability-service", service, "--format", "json", "--progress-spinner", "off"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return []
    return packages


def first_answer(answers: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The first answer that says something of some package, else the first one that lists packages."""
    checked = [answer for answer in answers if any("skip_reason" not in package for package in answer)]
    return next(iter([*checked, *filter(None, answers)]), [])


def verdict(packages: Sequence[Mapping[str, Any]]) -> tuple[list[str], int]:
    """What to print of an answer, and how many known holes there are."""
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    checked = len(packages) - len(skipped)
    if not checked:
        return [
            "pip-audit: NOT CHECKED. No advisory service answered, so nothing is known of the locked packages: "
            "run this again where pypi.org or api.osv.dev can be reached."
        ], 0
    holes = [
        f"pip-audit: {package['name']} {package['version']}: {hole['id']}"
        f" (fixed in {', '.join(hole['fix_versions']) or 'no version yet'})"
        for package in packages
        for hole in package.get("vulns", ())
    ]
    lines = [*holes, f"pip-audit: {checked} packages checked, {len(holes)} known holes"]
    if skipped:
        lines.append(f"pip-audit: NOT CHECKED: {', '.join(skipped)}")
    return lines, len(holes)


if __name__ == "__main__":
    sys.exit(main())
