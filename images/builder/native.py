"""Run one program on wasmtime's own Python binding: native.py WHEEL_DIR ROOT MODULE ARG...

No part of wasmvm takes part, so what this prints is the independent truth that the
expected outputs of the examples are checked against. Environment: NATIVE_ENV, one K=V a line.
"""
import os
import sys

TRAP_STATUS = 134


def wasi_of(wasmtime, root, arguments):
    wasi = wasmtime.WasiConfig()
    wasi.argv = arguments
    wasi.env = [tuple(line.split("=", 1)) for line in os.environ["NATIVE_ENV"].splitlines()]
    wasi.inherit_stdin()
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    wasi.preopen_dir(root, "/")
    return wasi


def run_core(wasmtime, engine, store, code):
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    instance = linker.instantiate(store, wasmtime.Module(engine, code))
    instance.exports(store)["_start"](store)
    return 0


def run_component(wasmtime, engine, store, code):
    from wasmtime import component

    linker = component.Linker(engine)
    linker.add_wasip2()
    compiled = component.Component(engine, code)
    instance = linker.instantiate(store, compiled)
    name = next(each for each in compiled.type.exports(engine) if each.startswith("wasi:cli/run@"))
    interface = instance.get_export_index(store, name)
    run = instance.get_func(store, instance.get_export_index(store, "run", interface))
    return 0 if run(store).tag == "ok" else 1


def main(arguments):
    wheel, root, module, *command = arguments
    sys.path.insert(0, wheel)
    import wasmtime

    config = wasmtime.Config()
    config.wasm_exceptions = True
    engine = wasmtime.Engine(config)
    store = wasmtime.Store(engine)
    store.set_wasi(wasi_of(wasmtime, root, command))
    with open(module, "rb") as file:
        code = file.read()
    run = run_core if code[4:8] == b"\1\0\0\0" else run_component
    try:
        return run(wasmtime, engine, store, code)
    except wasmtime.ExitTrap as end:
        return end.code
    except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
        print(error, file=sys.stderr)
        return TRAP_STATUS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
