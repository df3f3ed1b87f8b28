# Any state run brings changed Python modules to the host; this one does nothing else.
platform-modules:
  test.nop
