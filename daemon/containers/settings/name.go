package settings

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"strconv"
	"strings"
)

const nameChars = `[a-zA-Z0-9][a-zA-Z0-9_.-]`

var validName = regexp.MustCompile(`^` + nameChars + `+$`)

// CheckName returns a container's name in the form in which the record keeps it, with a leading slash.
func CheckName(name string) (string, error) {
	bare := strings.TrimPrefix(name, "/")
	if !validName.MatchString(bare) {
		return "", invalid(fmt.Sprintf("Invalid container name (%s), only %s are allowed", name, nameChars))
	}
	return "/" + bare, nil
}

// NameAttempts is how many random names are worth a try before the short id has to serve.
const NameAttempts = 6

// RandomName proposes a name for a container that was given none, without a slash: an adjective and the surname of
// someone who pushed science or engineering on. From the second attempt (1) on it ends in a digit.
func RandomName(attempt int) string {
	name := adjectives[rand.IntN(len(adjectives))] + "_" + surnames[rand.IntN(len(surnames))]
	if attempt > 0 {
		name += strconv.Itoa(rand.IntN(10))
	}
	return name
}

// The lists are read, never written.
var adjectives = [...]string{
	"able", "agile", "alert", "amiable", "ardent", "artful", "balanced", "bold", "brave", "breezy",
	"bright", "brisk", "calm", "candid", "careful", "cheerful", "civil", "clear", "clever", "constant",
	"cordial", "curious", "daring", "deft", "diligent", "earnest", "easygoing", "eloquent", "fair", "fearless",
	"fervent", "fond", "frank", "free", "fresh", "friendly", "gallant", "generous", "genial", "gentle",
	"glad", "graceful", "handy", "hardy", "honest", "humble", "inventive", "jolly", "jovial", "keen",
	"kindly", "lively", "loyal", "lucid", "mellow", "merry", "mindful", "modest", "neat", "nimble",
	"noble", "patient", "placid", "polite", "prudent", "quick", "quiet", "radiant", "ready", "sincere",
	"smooth", "sober", "spirited", "steady", "sturdy", "sunny", "tactful", "tender", "thrifty", "tidy",
	"tireless", "upright", "valiant", "vivid", "warm", "watchful", "willing", "witty", "zesty", "zippy",
}

var surnames = [...]string{
	"abel", "agnesi", "alhazen", "ampere", "anning", "arago", "avogadro", "banach", "bassi", "bernoulli",
	"bessel", "bolyai", "boole", "brahe", "braille", "burnell", "cannon", "cantor", "carnot", "cassini",
	"cauchy", "cavendish", "chatelet", "church", "clausius", "copernicus", "coulomb", "dalton", "dedekind", "descartes",
	"dirac", "dirichlet", "doppler", "eddington", "edison", "eratosthenes", "erdos", "euclid", "faraday", "fibonacci",
	"fisher", "fourier", "franklin", "fresnel", "galois", "gauss", "germain", "gibbs", "grassmann", "halley",
	"hamilton", "helmholtz", "herschel", "hilbert", "hooke", "hopper", "huygens", "jacobi", "joule", "kelvin",
	"kepler", "kirchhoff", "kovalevskaya", "lagrange", "laplace", "leibniz", "lovelace", "lyell", "maxwell", "meitner",
	"mendel", "mendeleev", "mitchell", "noether", "ohm", "pascal", "pasteur", "planck", "poincare", "ramanujan",
	"riemann", "rontgen", "rutherford", "sagan", "shannon", "snell", "somerville", "thales", "torricelli", "turing",
	"volta", "wallis", "weber", "weyl", "wheatstone", "wu", "young", "zermelo", "zuse", "zworykin",
}
