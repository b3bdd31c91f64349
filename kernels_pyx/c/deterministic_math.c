#include "deterministic_math.h"

#include <math.h>

/* Taylor series are long enough that their truncation is below half a unit in the last place of double:
   the arguments are reduced to |r| <= 0.35 (exp), |s| <= 0.172 (log) and |r| <= pi/4 (sin, cos). */

static const double LN2_HIGH = 0x1.62e42fee00000p-1;   /* 32 bits: times an exponent it is exact */
static const double LN2_LOW = 0x1.a39ef35793c76p-33;
static const double LOG2_E = 0x1.71547652b82fep+0;
static const double PI_OVER_2_HIGH = 0x1.921fb54400000p+0;   /* 33 bits each: times a quadrant below 2^20 exact */
static const double PI_OVER_2_MIDDLE = 0x1.0b4611a600000p-34;
static const double PI_OVER_2_LOW = 0x1.3198a2e037073p-69;
static const double TWO_OVER_PI = 0x1.45f306dc9c883p-1;
static const double SQRT_HALF = 0x1.6a09e667f3bcdp-1;

double dm_exp(double x) {
    if (x > 700.0) x = 700.0;
    if (x < -700.0) x = -700.0;
    double n = floor(x * LOG2_E + 0.5);
    double r = (x - n * LN2_HIGH) - n * LN2_LOW;
    double sum = 1.0;
    for (int k = 16; k >= 1; k--) sum = 1.0 + sum * r / k;
    return ldexp(sum, (int)n);
}

double dm_log(double x) {
    int exponent;
    double m = frexp(x, &exponent);
    if (m < SQRT_HALF) {
        m *= 2.0;
        exponent--;
    }
    double s = (m - 1.0) / (m + 1.0), s2 = s * s, sum = 0.0;
    for (int k = 23; k >= 3; k -= 2) sum = s2 * (1.0 / k + sum);
    return exponent * LN2_HIGH + (2.0 * (s + s * sum) + exponent * LN2_LOW);
}

void dm_sin_cos(double x, double* sine, double* cosine) {
    double n = floor(x * TWO_OVER_PI + 0.5);
    double r = ((x - n * PI_OVER_2_HIGH) - n * PI_OVER_2_MIDDLE) - n * PI_OVER_2_LOW;
    double r2 = r * r, s = 1.0, c = 1.0;
    for (int k = 9; k >= 1; k--) {
        s = 1.0 - s * r2 / (double)((2 * k) * (2 * k + 1));
        c = 1.0 - c * r2 / (double)((2 * k - 1) * (2 * k));
    }
    s *= r;
    switch ((long)n & 3) {
        case 0: *sine = s, *cosine = c; break;
        case 1: *sine = c, *cosine = -s; break;
        case 2: *sine = -s, *cosine = -c; break;
        default: *sine = -c, *cosine = s; break;
    }
}
