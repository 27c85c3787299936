"""A fair comparison of methods: the same base, the same tuning budget, several seeds, equal tokens or equal FLOPs.

    suite     the file that says what is compared, typed
    matrix    methods and runs: a checked configuration for each, and the folder it lives in
    outcome   what a run's folder says it came to
    progress  which rate is best, which runs are wanted next; a pure function of what is known
    execute   runs as processes of `sparlow train`, on cores or GPUs
    compare   from the first run to the last, with stops and failures
    results   a record of each run; table, picture: what is made of them

Nothing is kept but the runs' own folders: all else is worked out from them anew, so that a comparison goes on after a
kill at any moment, and takes in methods and seeds that are added later.
"""
