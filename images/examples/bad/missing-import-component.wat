;; A wasi:cli/run component that wants an interface nobody provides: the error must name it.
(component
  (import "acme:rocket/pad@1.0.0" (instance $pad (export "launch" (func))))
  (core func $launch (canon lower (func $pad "launch")))
  (core module $code
    (import "pad" "launch" (func $launch))
    (func (export "run") (result i32) call $launch i32.const 0))
  (core instance $imports (export "launch" (func $launch)))
  (core instance $instance (instantiate $code (with "pad" (instance $imports))))
  (func $run (result (result)) (canon lift (core func $instance "run")))
  (instance $command (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $command)))
