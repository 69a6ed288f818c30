package network

import "errors"

// undoList collects how to take back what has been done, newest last.
type undoList struct {
	steps []func() error
}

func (u *undoList) add(step func() error) { u.steps = append(u.steps, step) }

// runOn takes everything back, newest first, if *err is set, and joins what fails to it.
func (u *undoList) runOn(err *error) {
	if *err == nil {
		return
	}
	for i := len(u.steps) - 1; i >= 0; i-- {
		if undoErr := u.steps[i](); undoErr != nil {
			*err = errors.Join(*err, undoErr)
		}
	}
}
