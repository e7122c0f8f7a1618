"""Closes lost runs of a server from whatever host: a thread of each command that trains, of which two hosts' look.

Who looks is decided like who holds a run: a server has two posts, tags of its experiment, whose holders renew them.
The other commands only watch the posts for change, once a minute, and take one that is free.
"""

import contextlib
import logging
import socket
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from resnet_bench.tracking import leases
from resnet_bench.tracking.leases import LeaseWatch, close_lost_runs
from resnet_bench.tracking.mlflow_client import patient
from resnet_bench.tracking.stale_runs import StaleRun
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.vocabulary import EXPERIMENTS, POSTS

if TYPE_CHECKING:
    from mlflow import MlflowClient

END_SECONDS = 1.0
"""What a server gets at the end to take the news that a post is free."""

_log = logging.getLogger(__name__)


@dataclass
class Watcher:
    """One process's part in watching a server; it looks while it holds a post.

    Attributes:
        store: The server.
        host: This machine; one host holds one post.
    """

    store: Store
    host: str = field(default_factory=socket.gethostname)
    runs: LeaseWatch = field(default_factory=LeaseWatch)
    posts: LeaseWatch = field(default_factory=LeaseWatch)
    _name: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    _beats: int = 0
    _post: str | None = None

    def turn(self) -> list[StaleRun]:
        """Renew the post, or look for a free one; with a post, close what is lost."""
        try:
            with patient():
                self._post = self._hold_post(self.store.client())
        except Exception as error:  # whatever the server's client raises
            self.posts.forget()
            self.runs.forget()
            _log.debug("%s was not watched: %s", self.store.redacted_uri, self.store.describe_error(error))
            return []
        return close_lost_runs(self.store, self.runs) if self._post else []

    @property
    def pause(self) -> float:
        """Seconds until the next turn."""
        return leases.BEAT_SECONDS if self._post else leases.LOST_SECONDS

    def leave(self) -> None:
        """Free the post for another process."""
        if self._post:
            with contextlib.suppress(Exception):  # whatever the server's client raises
                client = self.store.client()
                _, experiment_id = _posts(client)
                client.set_experiment_tag(experiment_id, self._post, "")

    def _hold_post(self, client: "MlflowClient") -> str | None:
        """Return the tag that this process holds; None where two other hosts, or another process of this one, watch."""
        tags, experiment_id = _posts(client)
        mine = f"{self.host} {self._name} "
        taken = {post: tags[post] for post in POSTS if tags.get(post)}
        held = {post: found for post, found in taken.items() if not self.posts.is_silent(post, found)}
        post = next((post for post, found in held.items() if found.startswith(mine)), None)
        if post is None and not any(found.startswith(f"{self.host} ") for found in held.values()):
            post = next((post for post in POSTS if post not in held), None)
        if post is not None:
            self._beats += 1
            client.set_experiment_tag(experiment_id, post, f"{mine}{self._beats}")
        return post


def _posts(client: "MlflowClient") -> tuple[dict[str, str], str]:
    """Return the tags of the experiment that has the posts, and its id.

    Raises:
        LookupError: The server has none of our experiments.
    """
    for name in EXPERIMENTS:
        if (found := client.get_experiment_by_name(name)) is not None:
            return dict(found.tags), str(found.experiment_id)
    raise LookupError(EXPERIMENTS)


@contextlib.contextmanager
def watching(store: Store) -> Iterator[None]:
    """Close lost runs of a server meanwhile, from a thread."""
    if not store.is_shared:
        # A file is written by one host, which knows its processes.
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(Watcher(store), ended), name="lost-runs", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(END_SECONDS)


def _watch(watcher: Watcher, ended: threading.Event) -> None:
    # A command that ends at once has nothing to watch.
    pause = leases.LOOK_SECONDS
    while not ended.wait(pause):
        for run in watcher.turn():
            _log.warning("%s is closed: %s", run.name, run.reason)
        pause = watcher.pause
    watcher.leave()
