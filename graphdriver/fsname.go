package graphdriver

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// FSName returns the name of the file system that holds path, as Docker prints it for "Backing Filesystem".
func FSName(path string) (string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return "", &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	switch uint32(st.Type) {
	case 0x61756673:
		return "aufs", nil
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs", nil
	case unix.CRAMFS_MAGIC:
		return "cramfs", nil
	case unix.ECRYPTFS_SUPER_MAGIC:
		return "ecryptfs", nil
	case unix.EXT4_SUPER_MAGIC:
		return "extfs", nil
	case unix.F2FS_SUPER_MAGIC:
		return "f2fs", nil
	case 0x65735546:
		return "fuse", nil
	case 0x47504653:
		return "gpfs", nil
	case 0x0bd00bd0:
		return "lustre", nil
	case unix.NFS_SUPER_MAGIC:
		return "nfs", nil
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlayfs", nil
	case unix.SQUASHFS_MAGIC:
		return "squashfs", nil
	case unix.TMPFS_MAGIC:
		return "tmpfs", nil
	case unix.XFS_SUPER_MAGIC:
		return "xfs", nil
	case 0x2fc12fc1:
		return "zfs", nil
	case 0xca451a4e:
		return "bcachefs", nil
	}
	return fmt.Sprintf("<unknown> (%#x)", uint32(st.Type)), nil
}
