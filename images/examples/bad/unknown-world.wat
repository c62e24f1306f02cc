;; A component of a world that is not wasi:cli/command: it exports no wasi:cli/run.
(component
  (core module $code
    (func (export "fire") (result i32) i32.const 42))
  (core instance $instance (instantiate $code))
  (func $fire (result u32) (canon lift (core func $instance "fire")))
  (instance $engine (export "fire" (func $fire)))
  (export "acme:rocket/engine@1.0.0" (instance $engine)))
