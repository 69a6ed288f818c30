package projectquota

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What follows is the kernel's interface, from linux/fs.h, linux/quota.h and linux/dqblk_xfs.h. ext4 speaks the part
// that began with xfs as well.
const (
	getAttributes = 0x801c581f // FS_IOC_FSGETXATTR
	setAttributes = 0x401c5820 // FS_IOC_FSSETXATTR

	inheritProject = 0x200 // FS_XFLAG_PROJINHERIT

	projectType  = 2          // PRJQUOTA
	getQuota     = 'X'<<8 + 3 // Q_XGETQUOTA
	setLimits    = 'X'<<8 + 4 // Q_XSETQLIM
	getState     = 'X'<<8 + 5 // Q_XGETQSTAT
	accounting   = 1 << 4     // FS_QUOTA_PDQ_ACCT
	enforcement  = 1 << 5     // FS_QUOTA_PDQ_ENFD
	quotaVersion = 1          // FS_DQUOT_VERSION
	projectFlag  = 2          // FS_PROJ_QUOTA
	softBlocks   = 1 << 2     // FS_DQ_BSOFT
	hardBlocks   = 1 << 3     // FS_DQ_BHARD
	blockSize    = 512        // bytes in which limits are counted
)

// attributes is struct fsxattr.
type attributes struct {
	flags, _, _ uint32
	project     uint32
	_           uint32
	_           [8]byte
}

// diskQuota is struct fs_disk_quota, of which the kernel writes all.
type diskQuota struct {
	version              int8
	flags                int8
	fields               uint16
	id                   uint32
	hard, soft           uint64 // blocks
	hardFiles, softFiles uint64
	blocks, files        uint64 // in use
	_                    [56]byte
}

// The kernel knows no other sizes, and writes beyond what is smaller.
var (
	_ = [1]struct{}{}[unsafe.Sizeof(attributes{})-28]
	_ = [1]struct{}{}[unsafe.Sizeof(diskQuota{})-112]
)

// quotaState begins like struct fs_quota_stat, which is no longer than this.
type quotaState struct {
	_     int8
	_     int8
	flags uint16
	_     [108]byte
}

func getAttr(f *os.File) (a attributes, err error) {
	return a, ioctl(f, getAttributes, &a)
}

func setAttr(f *os.File, a attributes) error { return ioctl(f, setAttributes, &a) }

func ioctl(f *os.File, request uintptr, a *attributes) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(a))); errno != 0 {
		return &os.PathError{Op: "ioctl", Path: f.Name(), Err: errno}
	}
	return nil
}

func quotactl(device string, command int, id uint32, data unsafe.Pointer) error {
	path, err := unix.BytePtrFromString(device)
	if err != nil {
		return err
	}
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL, uintptr(command<<8|projectType), uintptr(unsafe.Pointer(path)), uintptr(id), uintptr(data), 0, 0)
	if errno != 0 {
		return &os.PathError{Op: "quotactl", Path: device, Err: errno}
	}
	return nil
}

// enforced reports whether the file system on the device holds projects to their limits.
func enforced(device string) bool {
	var state quotaState
	err := quotactl(device, getState, 0, unsafe.Pointer(&state))
	return err == nil && state.flags&accounting != 0 && state.flags&enforcement != 0
}

// books returns what the file system knows of a project; nothing, if it never heard of it.
func books(device string, id uint32) (q diskQuota, err error) {
	err = quotactl(device, getQuota, id, unsafe.Pointer(&q))
	if errors.Is(err, unix.ENOENT) {
		return diskQuota{}, nil
	}
	return q, err
}

// limit sets what a project may hold, rounded up to whole blocks; 0 is without a limit.
func limit(device string, id uint32, bytes uint64) error {
	blocks := bytes / blockSize
	if bytes%blockSize != 0 {
		blocks++
	}
	q := diskQuota{version: quotaVersion, flags: projectFlag, fields: softBlocks | hardBlocks, id: id, hard: blocks, soft: blocks}
	return quotactl(device, setLimits, id, unsafe.Pointer(&q))
}
