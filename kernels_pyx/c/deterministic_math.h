/* exp, log, sin and cos in double precision from +, -, *, / and exact operations only, so that every machine
   gives the same bits, whatever its libm. Relative error below 1e-15 in the ranges that are stated. */
#ifndef DAIRLLM_DETERMINISTIC_MATH_H
#define DAIRLLM_DETERMINISTIC_MATH_H

double dm_exp(double x);                                     /* |x| <= 700, beyond that clamped */
double dm_log(double x);                                     /* x > 0, normal */
void dm_sin_cos(double x, double* sine, double* cosine);     /* |x| <= 1e6 */

#endif
