package network_test

const crashEnv = "STATED_TEST_CRASH"

func crashChild() {}
