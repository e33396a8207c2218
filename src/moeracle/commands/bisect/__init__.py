"""`moeracle bisect`: from "it is wrong" to one stage, one commit, one setting."""
