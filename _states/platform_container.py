"""The platform's containers: made anew only where something about them has changed."""

from __future__ import annotations

from typing import Any, NoReturn

from aiplatform import containers
from aiplatform.errors import PlatformError
from aiplatform.states import converge, foreseen


def running(
    name: str,
    image: str,
    user: str,
    memory_mib: int,
    *,
    files: str | None = None,
    secrets: bool = False,
    entrypoint: list[str] | None = None,
    command: list[str] | None = None,
    environment: dict[str, str] | None = None,
    publish: list[str] | None = None,
    volumes: dict[str, str] | None = None,
    tmpfs: dict[str, str] | None = None,
    health: dict[str, Any] | None = None,
    hosts: dict[str, str] | None = None,
    network: str | None = None,
    cap_add: list[str] | None = None,
    pids: int | None = None,
    nofile: int | None = None,
    shm_mib: int | None = None,
    stop_timeout: int | None = None,
    memory_reservation_mib: int | None = None,
    cpus: float | None = None,
    gpus: int | str | None = None,
    labels: dict[str, str] | None = None,
    restart: str | None = None,
    log_options: dict[str, str] | None = None,
    writable_root: bool = False,
    timeout: float = 120,
) -> dict[str, Any]:
    """A container runs exactly so, and is well.

    It gets, unless said otherwise: a read-only root with a tmpfs at /tmp, no capabilities, no way to new privileges,
    limits of memory and processes, bounded logs, the platform's network, ``host.docker.internal``, a restart
    whenever it ends. ``changes`` name the parts that differ, never their values. Watch what it should be made anew for
    besides its own specification and the files in ``files``, which are noticed anyway.

    name
        Its name, also in the network.

    image
        The full name of the image: ``platform_container.image``. One without a digest is what it was at its first pull.

    user
        ``uid:gid``, numbers; never root.

    memory_mib
        The limit of its memory in MiB; it gets no swap.

    timeout
        Seconds until its health check must be content.

    files
        A folder of the host that it sees read-only at ``/run/platform``.

    secrets
        true: ``secrets.env`` of that folder becomes its environment before ``command`` starts, and nowhere else.

    entrypoint, command
        Lists, in place of the image's own. With ``secrets``, ``command`` names the program.

    environment
        What is no secret: ``docker inspect`` shows it. Values are texts.

    publish
        ``address:port:container port[/udp]``, each in the table of services too, or the firewall lets nobody in.

    volumes
        ``{<folder of the host, or name of a Docker volume>: <folder in the container>}``, writable but for those that
        end with ``:ro``. ``{image}`` in a volume's name stands for the image: another one gets a volume of its own.

    tmpfs
        ``{<folder>: <mount options>}`` in place of the one at /tmp.

    health
        ``test`` (a list, or a text for a shell), ``interval``, ``timeout``, ``start_period`` (seconds), ``retries``;
        with ``start_interval`` it is also asked that often while it starts: by the engine from version 25 on, and by
        this state.

    hosts
        ``{name: address}``: names that it finds besides ``host.docker.internal``.

    memory_reservation_mib, cpus
        What it keeps when the host's memory runs short, in MiB; how many CPUs' time it gets at most.

    gpus
        How many of NVIDIA's devices it gets, or ``all``.

    labels, restart, log_options
        Further labels; in place of pillar ``containers``: when it is started again, how much log is kept.

    cap_add, pids, nofile, shm_mib, network, stop_timeout, writable_root
        What it needs beyond the defaults in pillar ``containers``.

    .. code-block:: yaml

        web:
          platform_container.running:
            - image: {{ salt["platform_container.image"]("web") }}
            - user: "1000:1000"
            - memory_mib: 256
            - publish: ["{{ pillar.address }}:8080:8080"]
    """
    wanted = {key: value for key, value in locals().items() if key not in ("name", "timeout")}
    try:
        parts = __salt__["platform_container.specification"](name, **wanted)
        return converge(
            name,
            plan=lambda: _plan(name, parts, files, timeout),
            apply=lambda: _apply(name, parts, files, timeout),
            test=__opts__["test"],
        )
    except PlatformError as err:
        return {"name": name, "result": False, "changes": {}, "comment": str(err)}


def mod_watch(name: str, **wanted: Any) -> dict[str, Any]:
    """Make a container anew, because what it watches has changed.

    .. code-block:: yaml

        web:
          platform_container.running:
            - watch: [file: web-certificate]
    """

    def renew() -> None:
        __salt__["platform_container.restart"](name)
        __salt__["platform_container.wait_well"](name, wanted.get("timeout", 120), wanted.get("files"))

    return converge(
        name,
        plan=lambda: {"restart": {"old": "before what it watches", "new": "after it"}},
        apply=renew,
        test=__opts__["test"],
    )


def absent(name: str) -> dict[str, Any]:
    """There is no container of this name.

    .. code-block:: yaml

        old-web:
          platform_container.absent: []
    """
    return converge(
        name,
        plan=lambda: {"container": {"old": "present", "new": None}} if _present(name) else {},
        apply=lambda: __salt__["platform_container.remove"](name),
        test=__opts__["test"],
    )


def volume_present(name: str, uid: int, gid: int, device: str | None = None) -> dict[str, Any]:
    """A volume of Docker is there, and belongs to the user that a container runs as. Its content is kept.

    name
        Its name.

    uid, gid
        Whose it is; what lies in it already becomes theirs, too.

    device
        A folder of the host that it is kept in; null: among Docker's own. A volume that is kept in another place is
        refused.

    .. code-block:: yaml

        web-volume:
          platform_container.volume_present:
            - name: web
            - uid: 21003
            - gid: 21003
    """

    def plan() -> dict[str, Any]:
        if not _engine_is_there():
            return containers.volume_difference(None, None, uid, gid)
        have = __salt__["platform_volume.inspect"](name)
        owner = __salt__["platform_volume.owner"](name) if have else None
        changes = containers.volume_difference(have, owner, uid, gid, device)
        if "place" in changes:
            _refuse_other_place(name, changes["place"], device)
        return changes

    return converge(
        name,
        plan=plan,
        apply=lambda: __salt__["platform_volume.create"](name, uid, gid, device),
        test=__opts__["test"],
    )


def _refuse_other_place(name: str, place: dict[str, str], device: str | None) -> NoReturn:
    move = (
        f"or remove its containers (docker ps --all --filter volume={name}), mkdir -p {device}, "
        f"cp -a {place['old']}/. {device}, docker volume rm {name}, and deploy again"
    )
    raise PlatformError(
        "The volume is kept in another place; it is left as it is, and nothing is lost",
        where=name,
        expected=place["new"],
        actual=place["old"],
        hint=f"name that place again, {move if device else 'or another volume'}",
    )


def network_present(name: str, bridge: str, subnet: str | None = None) -> dict[str, Any]:
    """The network of the platform's containers is there.

    name
        Its name.

    bridge
        The name of its interface on the host, which the firewall's rules name.

    subnet
        Its addresses; null: Docker chooses.

    .. code-block:: yaml

        containers-network:
          platform_container.network_present:
            - name: ai-platform
            - bridge: br-platform
    """

    def plan() -> dict[str, Any]:
        have = __salt__["platform_container.network"](name) if _engine_is_there() else None
        changes = containers.network_difference(have, bridge, subnet)
        if have and changes:
            raise PlatformError(
                "The network is there, and is another one",
                where=name,
                expected={key: row["new"] for key, row in changes.items()},
                actual={key: row["old"] for key, row in changes.items()},
                hint=f"remove its containers and then the network (docker network rm {name}), and deploy again",
            )
        return changes

    return converge(
        name,
        plan=plan,
        apply=lambda: __salt__["platform_container.create_network"](name, bridge, subnet),
        test=__opts__["test"],
    )


def _engine_is_there() -> bool:
    """Whether the engine can be asked; a dry run comes before there is one."""
    return not __opts__["test"] or __salt__["platform_container.answers"]()


def _present(name: str) -> bool:
    return _engine_is_there() and __salt__["platform_container.inspect"](name) is not None


def _plan(name: str, parts: dict[str, Any], files: str | None, timeout: float) -> dict[str, Any]:
    have = __salt__["platform_container.inspect"](name) if _engine_is_there() else None
    changes = containers.differences(have, parts, _digests(parts, files))
    if changes or have is None:
        return changes
    if containers.health(have) == "starting":
        __salt__["platform_container.wait_well"](name, timeout, files, _asks(parts))
        return {}
    return containers.repair(have)


def _digests(parts: dict[str, Any], files: str | None) -> dict[str, str]:
    """Return the hashes of what a container should be: in a dry run, of other files where they would be written."""
    digests: dict[str, str] = __salt__["platform_container.digests"](parts, files)
    rows = globals().get("__running__", {})  # Salt gives it to the states of a run
    others = __opts__["test"] and files and foreseen(rows, files)
    return digests | {"files": "others"} if others else digests


def _apply(name: str, parts: dict[str, Any], files: str | None, timeout: float) -> None:
    have = __salt__["platform_container.inspect"](name)
    digests = __salt__["platform_container.digests"](parts, files)
    if containers.differences(have, parts, digests):
        __salt__["platform_container.create"](name, parts, files)
    else:
        __salt__["platform_container.restart"](name)
    __salt__["platform_container.wait_well"](name, timeout, files, _asks(parts))


def _asks(parts: dict[str, Any]) -> bool:
    """Whether a container that starts is asked by this state, too."""
    return "StartInterval" in parts.get("health", {})
