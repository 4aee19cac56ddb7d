"""`depo replay`: recorded outcomes answered by every method, judged against what is known of each
prompt."""
