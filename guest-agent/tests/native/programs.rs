//! Small programs in WebAssembly's text format.

pub(crate) const HELLO: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\10\00\00\00\06\00\00\00")
  (data (i32.const 16) "hello\n")
  (func (export "_start")
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 64)))))"#;

pub(crate) fn exits_with(code: u32) -> String {
    format!(
        r#"(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start") (call $exit (i32.const {code}))))"#
    )
}

/// Exports functions of these names: `_initialize` adds ten to the status with which the others end.
pub(crate) fn exporting(names: &[&str]) -> String {
    let functions = names.iter().map(|name| match *name {
        "_initialize" => {
            let body = "(global.set $before (i32.add (global.get $before) (i32.const 10)))";
            format!("(func (export \"_initialize\") {body})")
        }
        name => {
            let status = match name {
                "_start" => 1,
                "" => 2,
                _ => 3,
            };
            let sum = format!("(i32.add (global.get $before) (i32.const {status}))");
            format!("(func (export \"{name}\") (call $exit {sum}))")
        }
    });
    format!(
        r#"(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (global $before (mut i32) (i32.const 0))
  {})"#,
        functions.collect::<String>()
    )
}

pub(crate) const TRAP: &str = r#"(module
  (func $deep_inside (unreachable))
  (func $_start (export "_start") (call $deep_inside)))"#;

pub(crate) const RECURSION: &str = r#"(module
  (func $_start (export "_start") (call $_start) (call $_start)))"#;

pub(crate) const LOOP: &str = r#"(module (func (export "_start") (loop $l (br $l))))"#;

/// Ends with the number of pages it could add.
pub(crate) const GROW: &str = r#"(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start") (local $n i32)
    (loop $l
      (if (i32.ne (memory.grow (i32.const 1)) (i32.const -1))
        (then
          (local.set $n (i32.add (local.get $n) (i32.const 1)))
          (br_if $l (i32.lt_u (local.get $n) (i32.const 200))))))
    (call $exit (local.get $n))))"#;

pub(crate) const IMPORTS_FOO: &str = r#"(module
  (import "env" "foo" (func))
  (func (export "_start")))"#;

/// Copies stdin to stdout; ends with the first errno, or 0 at end of file.
pub(crate) const CAT: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 4)
  (func $check (param i32) (if (local.get 0) (then (call $exit (local.get 0)))))
  (func (export "_start") (local $left i32)
    (loop $l
      (i32.store (i32.const 0) (i32.const 1024))
      (i32.store (i32.const 4) (i32.const 100000))
      (call $check (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
      (local.set $left (i32.load (i32.const 8)))
      (if (local.get $left) (then
        (loop $w
          (i32.store (i32.const 4) (local.get $left))
          (call $check (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
          (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.load (i32.const 8))))
          (local.set $left (i32.sub (local.get $left) (i32.load (i32.const 8))))
          (br_if $w (local.get $left)))
        (br $l))))))"#;

/// Ends with the first errno of writing to stdout.
pub(crate) const WRITES_UNTIL_ERROR: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\10\00\00\00\06\00\00\00")
  (func (export "_start") (local $errno i32)
    (loop $l
      (local.set $errno (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 64)))
      (br_if $l (i32.eqz (local.get $errno))))
    (call $exit (local.get $errno))))"#;

/// Ends with a bit for each of the descriptors 0, 1 and 2 that wasi-libc's `isatty` takes for a terminal:
/// a character device (2) that can neither seek (bit 2) nor tell (bit 5).
pub(crate) const ISATTY: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_fdstat_get" (func $stat (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start") (local $fd i32) (local $bits i32)
    (loop $l
      (if (i32.eqz (call $stat (local.get $fd) (i32.const 0))) (then
        (if (i32.and
              (i32.eq (i32.load8_u (i32.const 0)) (i32.const 2))
              (i64.eqz (i64.and (i64.load (i32.const 8)) (i64.const 0x24))))
          (then (local.set $bits (i32.or (local.get $bits)
            (i32.shl (i32.const 1) (local.get $fd))))))))
      (local.set $fd (i32.add (local.get $fd) (i32.const 1)))
      (br_if $l (i32.lt_u (local.get $fd) (i32.const 3))))
    (call $exit (local.get $bits))))"#;

/// The same by preview 2's `wasi:cli/terminal-*`.
pub(crate) const ISATTY_COMPONENT: &str = r#"(component
  (import "wasi:cli/terminal-input@0.2.0" (instance $tin (export "terminal-input" (type (sub resource)))))
  (alias export $tin "terminal-input" (type $in))
  (import "wasi:cli/terminal-output@0.2.0" (instance $tout (export "terminal-output" (type (sub resource)))))
  (alias export $tout "terminal-output" (type $out))
  (import "wasi:cli/terminal-stdin@0.2.0" (instance $stdin
    (alias outer 1 $in (type $i0)) (export "terminal-input" (type $i (eq $i0)))
    (export "get-terminal-stdin" (func (result (option (own $i)))))))
  (import "wasi:cli/terminal-stdout@0.2.0" (instance $stdout
    (alias outer 1 $out (type $o0)) (export "terminal-output" (type $o (eq $o0)))
    (export "get-terminal-stdout" (func (result (option (own $o)))))))
  (import "wasi:cli/terminal-stderr@0.2.0" (instance $stderr
    (alias outer 1 $out (type $o0)) (export "terminal-output" (type $o (eq $o0)))
    (export "get-terminal-stderr" (func (result (option (own $o)))))))
  (core module $libc (memory (export "memory") 1))
  (core instance $libc (instantiate $libc))
  (core func $f0 (canon lower (func $stdin "get-terminal-stdin") (memory (core memory $libc "memory"))))
  (core func $f1 (canon lower (func $stdout "get-terminal-stdout") (memory (core memory $libc "memory"))))
  (core func $f2 (canon lower (func $stderr "get-terminal-stderr") (memory (core memory $libc "memory"))))
  (core module $main
    (import "e" "memory" (memory 1))
    (import "e" "f0" (func $f0 (param i32)))
    (import "e" "f1" (func $f1 (param i32)))
    (import "e" "f2" (func $f2 (param i32)))
    (func (export "run") (result i32)
      (call $f0 (i32.const 0)) (call $f1 (i32.const 16)) (call $f2 (i32.const 32))
      ;; 0 (success) if all three are there
      (i32.eqz (i32.and (i32.and
        (i32.load8_u (i32.const 0)) (i32.load8_u (i32.const 16))) (i32.load8_u (i32.const 32))))))
  (core instance $main (instantiate $main (with "e" (instance
    (export "memory" (memory $libc "memory"))
    (export "f0" (func $f0)) (export "f1" (func $f1)) (export "f2" (func $f2))))))
  (func $run (result (result)) (canon lift (core func $main "run")))
  (instance $command (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $command)))"#;

/// Writes a byte, waits for one of stdin, then ends with the number of pages it could add.
pub(crate) const GROW_WHEN_TOLD: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\10\00\00\00\01\00\00\00")
  (func (export "_start") (local $n i32)
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 64)))
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 64)))
    (loop $l
      (if (i32.ne (memory.grow (i32.const 1)) (i32.const -1))
        (then
          (local.set $n (i32.add (local.get $n) (i32.const 1)))
          (br_if $l (i32.lt_u (local.get $n) (i32.const 200))))))
    (call $exit (local.get $n))))"#;

/// Writes 40000 bytes a hundred times and ends.
pub(crate) const WRITES_4_MB: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\10\00\00\00\40\9c\00\00")
  (func (export "_start") (local $n i32)
    (memory.fill (i32.const 16) (i32.const 120) (i32.const 40000))
    (loop $l
      (if (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 60000))
        (then (call $exit (i32.const 99))))
      (if (i32.ne (i32.load (i32.const 60000)) (i32.const 40000))
        (then (call $exit (i32.const 98))))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $l (i32.lt_u (local.get $n) (i32.const 100))))))"#;

/// Waits twice for stdin and once for 20 ms; ends with 10 * events + type of the first event.
pub(crate) const POLL_TWICE: &str = r#"(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (i32.store8 (i32.const 8) (i32.const 0))
    (i32.store (i32.const 16) (i32.const 1))
    (i64.store (i32.const 24) (i64.const 20000000))
    (i32.store8 (i32.const 56) (i32.const 1))
    (i32.store (i32.const 64) (i32.const 0))
    (i32.store8 (i32.const 104) (i32.const 1))
    (i32.store (i32.const 112) (i32.const 0))
    (if (call $poll (i32.const 0) (i32.const 256) (i32.const 3) (i32.const 512))
      (then (call $exit (i32.const 99))))
    (call $exit (i32.add
      (i32.mul (i32.load (i32.const 512)) (i32.const 10))
      (i32.load8_u (i32.const 266))))))"#;

/// Waits for stdin and for 20 ms; ends with 10 * events + type of the first event.
pub(crate) const POLL: &str = r#"(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    ;; subscription 0: clock (tag 0 at 8), monotonic (1 at 16), timeout at 24
    (i32.store8 (i32.const 8) (i32.const 0))
    (i32.store (i32.const 16) (i32.const 1))
    (i64.store (i32.const 24) (i64.const 20000000))
    ;; subscription 1: fd_read (tag 1 at 48 + 8) of descriptor 0
    (i32.store8 (i32.const 56) (i32.const 1))
    (i32.store (i32.const 64) (i32.const 0))
    (if (call $poll (i32.const 0) (i32.const 256) (i32.const 2) (i32.const 512))
      (then (call $exit (i32.const 99))))
    (call $exit (i32.add
      (i32.mul (i32.load (i32.const 512)) (i32.const 10))
      (i32.load8_u (i32.const 266))))))"#;

/// Writes the file `file` of the first preopen to stdout; ends with the first errno.
pub(crate) const READS_FILE: &str = r#"(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "file")
  (func $check (param i32) (if (local.get 0) (then (call $exit (local.get 0)))))
  (func (export "_start")
    (call $check (call $open (i32.const 3) (i32.const 1) (i32.const 16) (i32.const 4)
      (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 8)))
    (i32.store (i32.const 0) (i32.const 1024))
    (i32.store (i32.const 4) (i32.const 1000))
    (call $check (call $read (i32.load (i32.const 8)) (i32.const 0) (i32.const 1) (i32.const 12)))
    (i32.store (i32.const 4) (i32.load (i32.const 12)))
    (call $check (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 12)))))"#;

/// Makes `/new`; ends with WASI's errno.
pub(crate) const MAKES_FILE: &str = r#"(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "new")
  (func (export "_start")
    (call $exit (call $open (i32.const 3) (i32.const 1) (i32.const 16) (i32.const 3)
      (i32.const 1) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 8)))))"#;

/// Ends with 16 * arguments + environment entries.
pub(crate) const COUNTS: &str = r#"(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $env (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (call $args (i32.const 0) (i32.const 8)))
    (drop (call $env (i32.const 4) (i32.const 8)))
    (call $exit (i32.add
      (i32.mul (i32.load (i32.const 0)) (i32.const 16))
      (i32.load (i32.const 4))))))"#;

pub(crate) const COMPONENT: &str = r#"(component
  (import "wasi:io/error@0.2.0" (instance $err (export "error" (type (sub resource)))))
  (alias export $err "error" (type $error))
  (import "wasi:io/streams@0.2.0" (instance $streams
    (export "output-stream" (type $out (sub resource)))
    (alias outer 1 $error (type $e0))
    (export "error" (type $e (eq $e0)))
    (type $se0 (variant (case "last-operation-failed" (own $e)) (case "closed")))
    (export "stream-error" (type $se (eq $se0)))
    (export "[method]output-stream.blocking-write-and-flush"
      (func (param "self" (borrow $out)) (param "contents" (list u8))
        (result (result (error $se)))))))
  (alias export $streams "output-stream" (type $out))
  (import "wasi:cli/stdout@0.2.0" (instance $stdout
    (alias outer 1 $out (type $o0))
    (export "output-stream" (type $o (eq $o0)))
    (export "get-stdout" (func (result (own $o))))))
  (core module $libc (memory (export "memory") 1) (data (i32.const 16) "hello component\n"))
  (core instance $libc (instantiate $libc))
  (core func $get (canon lower (func $stdout "get-stdout")))
  (core func $write (canon lower
    (func $streams "[method]output-stream.blocking-write-and-flush") (memory (core memory $libc "memory"))))
  (core module $main
    (import "e" "get" (func $get (result i32)))
    (import "e" "write" (func $write (param i32 i32 i32 i32)))
    (func (export "run") (result i32)
      (call $write (call $get) (i32.const 16) (i32.const 16) (i32.const 0))
      (i32.const 0)))
  (core instance $main (instantiate $main (with "e" (instance
    (export "get" (func $get)) (export "write" (func $write))))))
  (func $run (result (result)) (canon lift (core func $main "run")))
  (instance $command (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $command)))"#;

pub(crate) const FAILING_COMPONENT: &str = r#"(component
  (core module $m (func (export "run") (result i32) (i32.const 1)))
  (core instance $i (instantiate $m))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $command (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $command)))"#;

pub(crate) const PROXY: &str = r#"(component
  (core module $m (func (export "handle")))
  (core instance $i (instantiate $m))
  (func $handle (canon lift (core func $i "handle")))
  (instance $handler (export "handle" (func $handle)))
  (export "wasi:http/incoming-handler@0.2.0" (instance $handler)))"#;
