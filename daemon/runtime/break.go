package runtime

// Break drops the connection as the death of the daemon would. It is there for tests of what a container then sees.
func (s *stream) Break() { _ = s.conn.Close() }
