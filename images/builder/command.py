"""Run a tool of the build and say what it said when it fails."""
import subprocess


class CommandError(Exception):
    """A command is not installed, or ended with another status than 0."""


def run(command, cwd=None):
    """The command's stdout."""
    try:
        done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except FileNotFoundError:
        raise CommandError(f"{command[0]} is not installed") from None
    if done.returncode != 0:
        raise CommandError(f"{' '.join(map(str, command))}: status {done.returncode}\n{done.stderr}")
    return done.stdout
