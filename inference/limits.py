"""Every threshold behind a verdict, in one place, each with its reason.

Measured by `benchmarks/verdict_rates.py --num-replicates 200` (4000 candidate draws, 10 or 50 quantities, 1000 or 4000
effective reference draws). `compare` with a Gaussian posterior: no exact copy called wrong, at most 1 % undecided; a
mean off by .2 sd trusted in at most 1 %, an sd off by a factor of 1.25 never. Student with 5 degrees: none wrong,
2-19 % undecided ("draw more"), at most 2.5 % and .5 % trusted. With 3 degrees: .5 % wrong, 15-94 % undecided,
at most 1.5 % trusted. `check` on Gaussians of dimension 2, 10, 50: every nearly exact fit trusted, no wrong one.
Short chains on Gaussian and skewed posteriors of these dimensions (124 fits in all): every exact one trusted, a mean
off by .2 sd trusted in 2, an sd off by a factor of 1.25 never.
What all of them do together, on posteriors and fits that they were not chosen on: `benchmarks/verdict_bank`.
Lengths are in posterior standard deviations of the reference.
"""

from math import log

# --- Agreement with a reference -------------------------------------------------------------------------------------
# An error counts as present when |error| - Z se exceeds its GOOD limit, as excluded when |error| + Z se stays below
# its TOLERANCE, and as unknown in between. Trust asks that every quantity's error is excluded (an intersection-union
# test), so whatever the number of quantities, a fit with one error at the tolerance passes with probability at most
# 1 - Phi(Z). The number of quantities only makes good fits fail, and there the room between zero and the tolerance
# pays for it: with 4 000 effective draws on both sides it is six standard errors wide. 2.05: one-sided 2 %.
Z = 2.05
# Mean: .1 sd costs 1 % in mean squared error, as 100 effective draws do (notes, section 6); .2 is what we refuse.
MEAN_GOOD, MEAN_TOLERANCE = 0.1, 0.2
# Sd: 10 % is invisible in a report with two digits; a factor of 1.25 turns a 90 % interval into 81 % or 96 %.
LOG_SD_GOOD, LOG_SD_TOLERANCE = log(1.1), log(1.25)
# Quantiles 5, 50, 95 %: twice the mean's limits. A shift of .1 sd with 6 % more spread moves an end point by .2, and
# the standard error of an end point is twice that of the mean.
QUANTILE_GOOD, QUANTILE_TOLERANCE = 0.2, 0.4
# "Trust the means only" still allows this error in a mean (notes, section 18).
MEANS_ONLY_TOLERANCE = 0.25
# Heavy tails, by the tail index k of the reference's draws (moments of order 1/k and higher are infinite). The error of
# an sd needs the fourth moment, so from .25 spread is judged by quantiles; the error of a mean needs the second (.5;
# .4 leaves room for the error of k), so from there location is judged by the median. Of Student-t posteriors this
# catches the sd with 4 degrees of freedom half the time and with 2 nearly always, and both for Cauchy tails.
HEAVY_SD, HEAVY_MEAN = 0.25, 0.4
# Spread also goes by quantiles where the reference's sd is uncertain by more than 10 %: its ratio could not be judged.
LOG_SD_SE = 0.1
# A difference between two correlations above this (and its error) is mentioned; it does not change the verdict, which
# speaks of means, sds and intervals of single quantities.
CORRELATION_REMARK = 0.2

# --- Markov chains --------------------------------------------------------------------------------------------------
RHAT = 1.01  # Vehtari et al. 2021, section 4
RHAT_BROKEN = 1.1  # the classical limit; beyond it chains sit in different places and no estimate means anything
ESS_PER_CHAIN = 100  # Vehtari et al. 2021: needed before R-hat and the standard errors can be relied upon
ESS = 400  # the same for the recommended four chains; also asked of fewer
BFMI = 0.3  # Betancourt 2016; ArviZ's and Stan's limit
# Leaving out a region of mass f moves a mean by at most sqrt(f / (1 - f)) sd. If one visit in ten to a region diverges,
# a share of .001 stands for a mass of .01 and at most .1 sd, which is MEAN_GOOD. Fewer are mentioned, not held against.
DIVERGENT_SHARE = 0.001
DIVERGENT_SHARE_BROKEN = 0.05  # one draw in twenty: the sampler is known to avoid part of the posterior
# Trajectories cut short cost efficiency first (which ESS sees); one in ten means the geometry is beyond the sampler.
TREE_DEPTH_SHARE = 0.1
# Draws of several modes are put together by their masses. Two equal masses are at most 2 sd apart, so that an error of
# .05 in them moves a mean by MEAN_GOOD.
MODE_MASS_SE = 0.05

# --- Importance weights ---------------------------------------------------------------------------------------------
# k < .5: the weights have finite variance, so the errors of weighted estimates can be believed (notes, 2.2).
KHAT_TRUST = 0.5
# Weighted moments without a second opinion: in the calibration table (notes, 2.3) every weighted sd with k <= .6 is
# within 6 % and every weighted mean within .04 sd; from .6 on there are fits with k = .75 whose weighted sd is .48.
KHAT_REWEIGHTED = 0.6
IS_ESS = 400  # as many effective draws as we ask of a Markov chain
MIN_DRAWS = 1000  # k-hat from fewer draws has a standard error above .1, the width of the decision
# Raw and weighted moments are averages over the same draws; their difference is precise, so the GOOD limits serve.
TAIL_LIMIT = 0.025  # of 5 % beyond each end of the interval; .2 sd (QUANTILE_GOOD) moves .05 to .033 or .074
# Weights with k above the limit understate an error, they rarely invent one: a shift this many standard errors
# beyond a limit, seen by at least this many effective draws, is evidence against the fit.
Z_UNRELIABLE, IS_ESS_EVIDENCE = 3.0, 50
MIN_SETTLED = 2  # of the starts of a mode search; with fewer the search has seen nothing

# --- Short Markov chains (TADDAA) -----------------------------------------------------------------------------------
# Of an error in the draws the chains still show 1 - memory, and what they show is divided by that. With half of it
# left the correction would double the Monte Carlo errors, too: no more is asked of it.
CHAIN_MEMORY = 0.5
CHAIN_ACCEPTANCE = 0.5  # adapted to .8: far less means that the chains were adapted in another place
CHAIN_STUCK = 0.01  # as many as the mass of a region that would matter, see DIVERGENT_SHARE
# Mean acceptance beyond the 5 % or 95 % quantile of a quantity: .6 to .9 for Gaussians up to D = 200, right or wrong by
# a factor of two in their sds; below .4 in the neck of a funnel, which chains with these steps cannot enter further.
CHAIN_TAIL_ACCEPTANCE = 0.4
CHAIN_DRIFT = 0.05  # in sds, from one half of a run to the other: half of MEAN_GOOD
