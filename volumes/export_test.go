package volumes

// Fold brings what is logged into the database now. Without operations under way the file is at rest afterwards.
func (s *Store) Fold() error { return s.meta.fold() }
